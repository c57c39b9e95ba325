"""The commands of `graft`, one file each: flags are parsed first, the rest is imported after."""
