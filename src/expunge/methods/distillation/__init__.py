"""Methods that match, or leave, the outputs of a teacher."""
