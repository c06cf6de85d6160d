"""The text-to-image teacher of emoji and its judge: data, autoencoder, text encoder, denoiser."""
