"""``lineahead push``, ``pull`` and ``card``: artifacts on the Hugging Face Hub."""
