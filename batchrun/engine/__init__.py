"""Drive one run: write each intent down, start the I/O, and turn its results into events.

This includes the order of writes, what an answer means for its row, and how signals end a session.
"""
