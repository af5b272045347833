"""What a sentence-transformers folder says, one file for each of its parts; the folder as a whole is read beside it.

Every key and module that is known runs as it does there. One that is not is refused by its name: what an unknown
setting would change cannot be seen from outside, and the vectors would be another encoder's.
"""
