"""Scripted incidents and attacks, and the puppet model that carries them out. Ships, so that anyone can run it against their own set-up."""
