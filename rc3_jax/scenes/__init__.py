"""Generated scenes: pictures, texts in several languages, and the five tasks in miniature."""
