"""The five tasks of IGLUE and others: their files, fine-tuning, scores and reports."""
