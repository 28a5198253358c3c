# The jobs of a Nix expression, for the `nix` evaluator.
#
# `request` is JSON. With `walk`, each step is told on standard error by `builtins.trace`, as `mark` and a JSON object
# on one line, at the moment it is taken, so that jobs are known while the walk goes on, and so that the attribute
# that ends the whole process, which `tryEval` cannot always prevent, is known as well. Without `walk`, the value is
# the tree of jobs for nix-eval-jobs.
#
# The first component of a path is the system that a function was called for, or "any".
{ request }:
let
  inherit (builtins)
    attrNames concatMap elem filter foldl' fromJSON functionArgs getFlake head intersectAttrs isAttrs isFunction isInt
    isList isString length lessThan listToAttrs mapAttrs readFile removeAttrs seq storeDir stringLength substring tail toJSON
    trace tryEval unsafeDiscardStringContext;

  ask = fromJSON request;

  # As deep as anybody nests jobs; a set that holds itself would be walked for ever.
  depthLimit = 16;

  channels = listToAttrs (map
    (channel: {
      inherit (channel) name;
      value = {
        # In the store, and named alike in every evaluation, lest `channel + "/file"` be the checkout's own file name:
        # no build could read that, and each evaluation would make another derivation.
        outPath = builtins.path { path = /. + channel.directory; name = "source"; };
        inputType = "git";
        uri = channel.url;
        rev = channel.commit;
        shortRev = substring 0 7 channel.commit;
        # Release expressions want a number; checkouts have no history to count.
        revCount = 0;
      };
    })
    ask.channels);

  argumentsFor = system: channels // {
    inherit system;
    inherit (ask) systems;
    supportedSystems = ask.systems;
  };

  # Functions that take named arguments are called, as nix-build does.
  call = system: value:
    if isFunction value && functionArgs value != { } then
      call system (value (intersectAttrs (functionArgs value) (argumentsFor system)))
    else value;

  source = if ask ? flake then getFlake ask.reference else import (/. + ask.file);

  select = system: foldl' (value: name: call system value.${name}) (call system source) ask.attribute;

  # Of the functions on the way, whether one wants to know the system: then it is called for each.
  takesSystem =
    let
      first = head ask.systems;
      step = found: value: found || (isFunction value && functionArgs value ? system);
      # Only the file itself and what is selected from it; what is nested deeper is called for the first system.
      go = value: path:
        step false value || (path != [ ] && go (call first value).${head path} (tail path));
    in
    go source ask.attribute;

  roots =
    if takesSystem
    then listToAttrs (map (system: { name = system; value = select system; }) ask.systems)
    else { any = select (head ask.systems); };

  isJob = value: isAttrs value && value.type or null == "derivation";

  isPruned = value: !(value.recurseForDerivations or true);

  children = value: removeAttrs value [ "recurseForDerivations" ];

  # Fetchers built into the daemon run anywhere.
  systemOf = job: if job.system == "builtin" then head ask.systems else job.system;

  wanted = root: system: if root == "any" then elem system ask.systems else system == root;

  # --- For nix-eval-jobs, which isolates errors by itself.
  tree = root: depth: value:
    let found = call (if root == "any" then head ask.systems else root) value; in
    if isJob found then (if wanted root (systemOf found) then found else { })
    else if isAttrs found && !isPruned found && depth < depthLimit
    then mapAttrs (_: tree root (depth + 1)) (children found)
    else { };

  # --- For nix-instantiate.
  plain = text: unsafeDiscardStringContext text;

  outputsOf = job: listToAttrs (concatMap
    (name:
      let path = plain "${job.${name}}"; in
      # An output whose path depends on its contents has only a placeholder yet.
      if substring 0 (stringLength storeDir) path == storeDir then [{ inherit name; value = path; }] else [ ])
    (job.outputs or [ "out" ]));

  describe = job: system:
    let meta = job.meta or { }; in
    {
      inherit system;
      drvPath = plain job.drvPath;
      name = plain job.name;
      outputs = outputsOf job;
      meta = listToAttrs (concatMap
        (name: if isInt (meta.${name} or null) then [{ inherit name; value = meta.${name}; }] else [ ])
        [ "timeout" "maxSilent" "schedulingPriority" ]);
    };

  tell = step: rest: trace "${ask.mark}${toJSON step}" rest;

  # What an attribute is: a job's description as JSON, a set to walk, or neither. All that can fail is forced here.
  look = root: depth: value:
    let
      found = call (if root == "any" then head ask.systems else root) value;
      system = systemOf found;
      text = toJSON { job = describe found system; };
    in
    if isJob found then
      (if wanted root system
      then seq text { kind = "job"; inherit text; }
      else { kind = "other"; inherit system; })
    else if isAttrs found && !isPruned found then
      (if depth < depthLimit then { kind = "set"; set = found; } else { kind = "deep"; })
    else { kind = "none"; };

  guarded = root: depth: value:
    if ask.strict then look root depth value
    else
      let tried = tryEval (look root depth value); in
      if tried.success then tried.value else { kind = "failed"; };

  visit = path: value: resume:
    let
      root = head path;
      found = guarded root (length path) value;
    in
    tell { begin = path; } (
      if found.kind == "job" then trace "${ask.mark}${found.text}" null
      else if found.kind == "set" then tell { enter = null; } (walk path (children found.set) resume)
      else if found.kind == "other" then tell { other = found.system; } null
      else if found.kind == "none" then tell { none = null; } null
      else tell { "${found.kind}" = path; } null
    );

  # `resume` is where an earlier process ended, relative to this set, or null. Sets are walked in the order of names.
  walk = path: set: resume:
    let
      names = attrNames set;
      left = if resume == null then names else filter (name: !(lessThan name (head resume))) names;
      step = _: name:
        let here = path ++ [ name ]; in
        if resume != null && name == head resume then
          (if tail resume != [ ] then visit here set.${name} (tail resume)
          else if ask.inclusive then visit here set.${name} null
          else null)
        else visit here set.${name} null;
    in
    foldl' (done: name: seq (step done name) null) null left;

  # One attribute alone, for the message of its error.
  alone = foldl' (value: name: call (if head ask.only == "any" then head ask.systems else head ask.only) value.${name})
    roots ask.only;
in
if !ask.walk then mapAttrs (root: tree root 1) roots
else if ask ? only then seq (look (head ask.only) (length ask.only) alone) null
else seq (walk [ ] roots (ask.resume or null))
  # This process keeps the derivations until it ends: it reads what can be read only once somebody else keeps them.
  (if ask ? gate then tell { end = null; } (seq (readFile ask.gate) null) else null)
