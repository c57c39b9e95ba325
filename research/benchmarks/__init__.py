"""Speed beside what one would use instead, measured in one run: one file for each benchmark."""
