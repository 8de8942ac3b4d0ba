"""What ``authz validate`` and ``authz check`` print: JSON for programs, lines and tables for eyes."""
