"""FLASH: gated attention units with mixed-chunk attention, trained from scratch."""
