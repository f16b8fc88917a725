"""What every room stands on: errors, files, tables, figures, progress, the form of results."""
