"""Results as a person reads them: terminal tables, the page, its pictures."""
