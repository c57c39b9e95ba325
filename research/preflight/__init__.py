"""What a run needs and costs on devices that are not here, from shapes and the real compiler."""
