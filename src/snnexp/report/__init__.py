"""A page for people from what was logged: `compose` makes a document of runs, `html` and `markdown` write it."""
