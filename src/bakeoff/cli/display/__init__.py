"""What the commands print: tables, progress, status, errors."""
