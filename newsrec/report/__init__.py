"""Show results to people: tables on the terminal, the HTML page and its pictures."""
