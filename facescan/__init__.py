"""facescan: what vision-language models see in face photographs, asked and scored at scale."""

__version__ = "0.1.0"
