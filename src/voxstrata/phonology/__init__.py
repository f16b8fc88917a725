"""How words sound, without audio: IPA by espeak-ng, distances by PanPhon's features."""
