"""Injections of every kind of failure, and what became of them.

python -m tests.reliability           the short form, a minute
python -m tests.reliability --long    the long form
"""
