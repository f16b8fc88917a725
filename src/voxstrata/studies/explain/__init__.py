"""Why two utterances match, frame by frame."""
