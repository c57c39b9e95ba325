"""A run: the program that is compiled, the loop that trains, and what is recorded of it."""
