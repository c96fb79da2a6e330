"""The main example: a reading desk of three specialists and an editor, over a batch of passages and questions."""
