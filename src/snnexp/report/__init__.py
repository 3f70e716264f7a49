"""A readable page from logged results: `compose` makes a document of runs, `html` and `markdown` write it."""
