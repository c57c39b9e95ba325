"""Memory, speed and cost of a run on devices that are not here, from shapes and the compiler."""
