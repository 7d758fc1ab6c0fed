"""Small image-to-text models of transformers with random weights, saved to folders."""

from __future__ import annotations

from pathlib import Path

WORDS = ("red", "blue", "dark", "bright", "digit", "on", "a", "grass", "table", "seen")


def save_captioner(folder: Path, kind: str = "blip") -> Path:
    """Save an untrained captioner of a kind, "blip" or "vision-encoder-decoder", to a folder; it says any words."""
    import torch
    import transformers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "blip":
            text = sizes | special | {"vocab_size": len(vocabulary), "encoder_hidden_size": 16, "sep_token_id": 3}
            vision = sizes | {"image_size": 16, "patch_size": 8}
            config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
            model = transformers.BlipForConditionalGeneration(config)
            transformers.BlipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
        else:
            encoder = transformers.ViTConfig(**sizes, image_size=16, patch_size=8)
            decoder = transformers.BertConfig(**sizes, **special, vocab_size=len(vocabulary))
            decoder.is_decoder = decoder.add_cross_attention = True
            config = transformers.VisionEncoderDecoderConfig(encoder=encoder.to_dict(), decoder=decoder.to_dict())
            config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
            model = transformers.VisionEncoderDecoderModel(config)
            model.generation_config.decoder_start_token_id = 2
            model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 3
            transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
        for name, parameter in model.named_parameters():  # so that words depend on the image
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.data = torch.randn_like(parameter) * (1.0 if "crossattention" in name else 0.3)
    model.save_pretrained(folder, safe_serialization=True)
    return folder
