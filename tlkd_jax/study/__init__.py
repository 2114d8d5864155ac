"""Does the teacher help? Many runs of `main`, compared.

A study is the matrix data sets x train sizes x arms x seeds of
configs/study.py. Each cell of it is an ordinary workdir,

    STUDY/cells/DATASET/SIZE/ARM/seed0/[TRIAL/]

with one file more, `cell.json`, which says that it is finished. Everything
that STUDY holds besides is made from these files and can be made again.
"""
