"""A program and its tests in one interpreter: the text that Python runs within the sandbox.

Only what runs to the end of a test may say that it passed. What says so is a key that the program
is not told, on a descriptor of its own, by functions and builtins that were taken aside before the
program began: so neither an early end, nor what it prints, nor what it puts in the place of
builtins passes. A program that searches its own process for the key could.
"""

import builtins
import json
import os
import sys
import types

# functions below see these, whatever a program does to the module
BUILTINS = dict(vars(builtins))
globals()["__builtins__"] = BUILTINS


def main() -> None:
    with open(0, "rb", closefd=False) as file:
        task = json.load(file)
    output, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    write, end, key = os.write, os._exit, task["key"]
    tests = [compile(text, f"test {n}", "exec") for n, text in enumerate(task["tests"], start=1)]
    module = types.ModuleType("answer")  # which is no `__main__`: it does not start itself
    sys.modules["answer"] = module

    def report(number: int, result: str) -> None:
        write(output, f"{key} {number} {result}\n".encode(errors="replace"))

    try:
        exec(compile(task["program"], "answer.py", "exec"), vars(module))
    except BaseException as error:
        report(0, describe(error))
        end(0)
    for number, test in enumerate(tests, start=1):
        vars(module)["__builtins__"] = dict(BUILTINS)
        try:
            exec(test, vars(module))
        except BaseException as error:
            report(number, describe(error))
        else:
            report(number, "passed")
    end(0)


def describe(error: BaseException) -> str:
    """Whether a test failed or something else went wrong, and how, in a line."""
    kind = "failed" if isinstance(error, AssertionError) else "error"
    try:
        return f"{kind} {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    except BaseException:
        return f"{kind} {type(error).__name__}"


if __name__ == "__main__":
    main()
