"""Run and training configurations that ship with facescan."""
