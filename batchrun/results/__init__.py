"""Results out: the text of an answer, the lines of results and errors, and files that get each line exactly once."""
