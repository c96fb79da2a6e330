"""What runs inside the engines' program: the block store and the vLLM connector.

Self-contained: the interpreter that has vLLM need not have Halo. Halo puts the folder above on that program's path.
"""
