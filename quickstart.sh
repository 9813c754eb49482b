#!/usr/bin/env bash
# From nothing to a result: installs, draws the letter B data set, trains, scores corrupted letters, draws a figure.
# Run it again to continue or to see the result again. Arguments are passed to the training, e.g. --max_epochs 2.
set -euo pipefail
cd "$(dirname "$0")"
data=data/quickstart
output=output/quickstart
results=$output/results
# More threads hardly speed up such small images, and wait for each other when the machine is busy.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

step() {
    printf '\n[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

step "1/6 Set-up"
bash setup.sh
source .venv/bin/activate

step "2/6 Data: $data"
python -m atlas_istn letter_b $data --num_training 200 --num_validation 16

step "3/6 Plan: $output"
# On a slow or busy machine the shorter time does not hold ten epochs.
[ -f $output/plan.json ] || python -m atlas_istn plan $data --output_dir $output --hours 0.12 ||
    python -m atlas_istn plan $data --output_dir $output --hours 0.4 ||
    python -m atlas_istn plan $data --output_dir $output --hours 2

step "4/6 Training: $output"
if [ "$(cat $output/trained 2>/dev/null)" = "trained $*" ]; then
    echo "Done already. To train anew, remove $output."
else
    python -m monai.bundle run training \
        --config_file "['bundle/configs/train.yaml','$output/configs/data.yaml']" --resume true "$@"
    echo "trained $*" >$output/trained
fi

step "5/6 Inference with refinement, and scores: $results"
python -m monai.bundle run evaluate \
    --config_file $output/configs/evaluate.yaml --test_list test_corrupt --output_dir $results

step "6/6 Figure and report"
python -m atlas_istn figure $data $results --initial_atlas $output/models/initial_atlas.pt
python -m atlas_istn report $results --dataset_dir $data

step "Done"
cat <<END
  the plan       $output/plan.png, configs/data.yaml
  the figure     $results/figure.png
  the report     $results/report.html
  the table      $results/summary.json, metrics.csv (a row per case, result and label)
  per case       $results/<case>/: segmentations, transforms, report
  the atlas      $results/atlas/
  the model      $output/models/model.pt
  training       tensorboard --logdir $output/tensorboard   (after: source .venv/bin/activate)
END
