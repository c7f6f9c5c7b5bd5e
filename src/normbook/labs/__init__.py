"""What the chapters run, a module a chapter. Labs return plain records, draw nothing.

Long runs are made by hand (`python -m normbook.labs.batch_norm`) and kept in
`records/`, with what they ran on; short ones run live in the notebooks.
"""
