"""The same as `graft train`, as a module: `python -m research.train`."""

from research.runtime import signals

if __name__ == "__main__":
    signals.end_program("graft train")  # before all that takes time to import
    signals.set_ending("nothing was begun")
    from research.commands.train import main

    signals.set_ending("")
    main()
