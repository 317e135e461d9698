"""From scores to a page for people: one HTML file and Markdown; needs neither Ray nor an engine."""
