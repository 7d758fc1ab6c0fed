"""The public face of every room: a name joins or leaves it on purpose."""

from __future__ import annotations

import importlib

import pytest

FACES = {
    "lightning_failures": """
        BatchRecord FailureModes FailureModesError FailureReport Grades analyse
    """,
    "lightning_failures.analysis": """
        AnalysisResult BaselinesFit Diary advance analyse
    """,
    "lightning_failures.baselines": """
        ErrorAwareMixture FailureClusters RankingScore compare_rankings disagreement fit_error_aware_mixture
        fit_failure_clusters generalised_cross_entropy hardness_by_class margins overlap_of_rankings
    """,
    "lightning_failures.bundled": """
        ColouredDigits ColouredDigitsDataModule DigitClassifier
    """,
    "lightning_failures.bundled.digits": """
        ADJECTIVES CLASSES ColouredDigits ColouredDigitsDataModule DigitClassifier NOUNS PREPOSITIONS TINTS
    """,
    "lightning_failures.bundled.models": """
        CLIP_FOLDER DIFFUSION_FOLDER ROBUST_FOLDER load_robust_cnn
    """,
    "lightning_failures.callback": """
        AdvancedOptions DataOptions FailureModes PictureOptions
    """,
    "lightning_failures.captions": """
        CaptionGrammar CaptionVocabulary caption_source captioned_source score_captions
    """,
    "lightning_failures.cli": """
        main
    """,
    "lightning_failures.data": """
        BatchRecord ClassReport ExampleTable FailureReport Grades GroupReport ModeReport grade_batch
    """,
    "lightning_failures.directions": """
        FailureDirections decoding_targets fit_failure_directions standardize
    """,
    "lightning_failures.doctor": """
        CHECKS Finding examine quiet
    """,
    "lightning_failures.encoders": """
        DifferentiableEncoder EmbeddingCache Encoder FeatureEncoder ModuleEncoder OpenCLIPEncoder Preprocessing
        RobustEncoder TextEncoder efficientnet_lite0 gives_gradients gives_maps gives_texts load_encoder
    """,
    "lightning_failures.errors": """
        CacheError ConfigurationError DataError EncoderError FailureModesError GeneratorError did_you_mean
    """,
    "lightning_failures.generators": """
        DiffusersDecoder DiffusersGenerator EmbeddingDecoder FunctionGenerator ImageGenerator load_generator
        takes_embeddings
    """,
    "lightning_failures.interventions": """
        AddFiltered AddSynthetic Decision Discovery EarlyAnswers Intervention JudgedExamples MaskFeatures RetrainHead
        Round Upweight Verdict suspect_labels
    """,
    "lightning_failures.methods": """
        Method methods_for register_method registered_methods
    """,
    "lightning_failures.pools": """
        PoolManifest PoolShard PoolSummary merge_shards read_pool_shard score_shard write_pool_shard
    """,
    "lightning_failures.pytorch_lightning": """
        FailureModes
    """,
    "lightning_failures.recipes": """
        RECIPES Recipe RecipeData
    """,
    "lightning_failures.regression": """
        Pin PinnedDirection PinnedSliceErrorRate assert_pins_hold check_pins load_pins
    """,
    "lightning_failures.report": """
        Gallery Picture class_table compare findings_lines open_run save_html write_html
    """,
    "lightning_failures.stats.kernels": """
        compiled compiled_strictly
    """,
    "lightning_failures.sparse": """
        AccuracyCurve ClassPairs FeatureCounterfactual FeatureEffects ProblematicFeatures RightReasons SparseLayer
        SparsePath class_pairs feature_counterfactual feature_effects fit_sparse_layer fit_sparse_path
        problematic_features right_reasons
    """,
    "lightning_failures.studies": """
        Answers Question Study TASKS annotate describe_questions make_study match_questions mixed
        questionnaire_questions score_answers simulate_questions study_page
    """,
    "lightning_failures.trees": """
        FailureTree Leaf average_leaf_error_rate error_coverage error_rate fit_failure_tree information_gain
    """,
    "lightning_failures.writers": """
        CSVWriter FileWriter GenericWriter MLFlowWriter TensorBoardWriter WandbWriter Writer WriterLimits each_writer
        register_writer write_report writers_for
    """,
}


@pytest.mark.parametrize("face", FACES)
def test_face__exports_these_names(face):
    assert sorted(importlib.import_module(face).__all__) == sorted(FACES[face].split())
