"""From predictions to counts, metrics and intervals; needs neither Ray nor an engine."""
