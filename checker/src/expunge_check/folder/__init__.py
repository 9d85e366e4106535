"""What a certificate folder holds: reading its files, their schema, declared texts, patches and proofs."""
