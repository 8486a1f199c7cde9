"""``lineahead study``: methods compared under one budget, cell by cell, with tables and plots."""
