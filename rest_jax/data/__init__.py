"""Text in, numbered and tokenised rows out; and the rows' store and loader."""
