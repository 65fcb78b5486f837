"""What is in a data set: collected in one pass (collect), shown as text (text) or as one HTML page (page).

results.py is what was found, tables.py the same as words and figures for both ways to show it; prepared.py reads a
prepared data set. A source of another kind only has to hand its rows to `collect` as chunks.
"""
