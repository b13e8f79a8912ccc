"""What drives one run: it writes each intent down, starts the I/O, and turns what comes back into events.

What is written in which order, what an answer means for its row, and how signals end a session.
"""
