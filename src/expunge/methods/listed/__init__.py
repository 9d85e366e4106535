"""Methods that [Li2025] lists beside certified patches, one file each."""
