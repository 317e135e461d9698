"""One file per engine, found by its name; `serving.engine` says what such a file defines."""
