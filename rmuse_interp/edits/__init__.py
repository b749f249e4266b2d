"""The verbs and the sentence: operators, edits and plans, and what runs them."""
