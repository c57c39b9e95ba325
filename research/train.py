"""The same as `graft train`, as a module: `python -m research.train`."""

from research.commands.train import main

if __name__ == "__main__":
    main()
