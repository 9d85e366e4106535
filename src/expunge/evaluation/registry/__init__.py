"""What a score is: its definition, its inputs, and how scores are measured."""
