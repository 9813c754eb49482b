#!/usr/bin/env bash
# From nothing to a result: installs, draws the letter B data set, trains, scores corrupted letters, draws a figure.
# Run it again to continue or to see the result again. Arguments are passed to the training, e.g. --max_epochs 2.
set -euo pipefail
cd "$(dirname "$0")"
data=data/letter_b
output=output/letter_b
results=$output/test_corrupt
# More threads hardly speed up such small images, and wait for each other when the machine is busy.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

step() {
    printf '\n[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

step "1/5 Set-up"
bash setup.sh
source .venv/bin/activate

step "2/5 Data: $data"
python -m atlas_istn letter_b $data

step "3/5 Training: $output"
if [ "$(cat $output/trained 2>/dev/null)" = "trained $*" ]; then
    echo "Done already. To train anew, remove $output."
else
    python -m monai.bundle run training \
        --config_file "['bundle/configs/train.yaml','bundle/configs/data/letter_b.yaml']" \
        --dataset_dir $data --output_dir $output --resume true \
        --max_epochs 20 --learning_rate_half_life 5 --val_interval 5 "$@"
    echo "trained $*" >$output/trained
fi

step "4/5 Inference with refinement, and scores: $results"
python -m monai.bundle run evaluate \
    --config_file $output/configs/evaluate.yaml --test_list test_corrupt --output_dir $results

step "5/5 Figure"
python -m atlas_istn figure $data $results --initial_atlas $output/models/initial_atlas.pt

step "Done"
cat <<END
  the figure     $results/figure.png
  the table      $results/summary.json, metrics.csv (a row per case, result and label)
  per case       $results/<case>/: segmentations, transforms, report
  the atlas      $results/atlas/
  the model      $output/models/model.pt
  training       tensorboard --logdir $output/tensorboard   (after: source .venv/bin/activate)
END
