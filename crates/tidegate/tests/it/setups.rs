//! What a setup left is taken by later runs.

use crate::fixture::Hospital;

#[test]
fn a_setup_that_ran_is_not_run_again_until_something_about_it_changes() {
    let hospital = Hospital::new();
    hospital.write(
        "train.sh",
        "cat \"$HOME/tool\"\n\
         echo '{\"model\": \"logistic\", \"epochs\": 12, \"batch_size\": 32, \"seed\": 1}' >trainer.json\n\
         exec \"$TIDEGATE_TRAINER\" trainer\n",
    );
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [train.sh]\n  setup: echo 'it is set up'; echo \"of $TOOL\" >\"$HOME/tool\"\n  run: sh train.sh\n  envs: {TOOL: steel}\n",
    );
    let first = hospital.run();
    let logs = hospital.logs();
    assert!(logs.contains("it is set up") && logs.contains("of steel"), "{logs}");
    // Another pipeline with the same setup is trained anew, and not set up.
    hospital.edit("tidegate.yaml", "  run: sh train.sh\n", "  run: sh train.sh && true\n");
    let second = hospital.run();
    let logs = hospital.logs();
    let taken = "[tidegate: setup is not run again: what it left before is taken]";
    assert!(logs.contains(taken) && logs.contains("of steel"), "{logs}");
    assert!(!logs.contains("it is set up"), "{logs}");
    assert_eq!(first["metrics"], second["metrics"], "the same training");
    hospital.edit("tidegate.yaml", "TOOL: steel", "TOOL: brass");
    hospital.run();
    let logs = hospital.logs();
    assert!(logs.contains("it is set up") && logs.contains("of brass"), "{logs}");
    // Nothing of it is in anybody's way: a sweep finds nothing that it may remove.
    let swept = hospital.succeed(&["transfers", "sweep", "--format", "json"]);
    assert!(!swept.contains("\"why\":\"unnamed\""), "{swept}");
    hospital.succeed(&["audit", "verify"]);
}
