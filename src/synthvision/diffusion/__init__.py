"""Personalise a latent diffusion model on a few guide images, and generate with it."""
