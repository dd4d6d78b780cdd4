"""What people see on Dagster's pages: columns, tables, pictures, summaries."""
