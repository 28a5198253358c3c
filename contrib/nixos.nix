# Gorget as a NixOS service:
#
#   imports = [ /path/to/gorget/contrib/nixos.nix ];
#   services.gorget = {
#     enable = true;
#     package = …;
#     specifications = [ {
#       name = "project";
#       channels = [ { name = "project"; url = "https://example.org/project.git"; } ];
#       evaluator = "nix";
#       build.file = "release.nix";
#     } ];
#   };
#
# The daemon evaluates as the user `gorget-jobs` and builds through nix-daemon. Members of the group `gorget` may use the
# bridge.
#
# With `remote.enable`, other machines build; each of them has
#
#   services.gorget = { package = …; worker = { enable = true; server = "farm.example:5555"; }; };
#
# and something that serves its store, see gorget-remote-worker(1).
{ config, lib, pkgs, ... }:
let
  cfg = config.services.gorget;
  specifications = pkgs.writeText "gorget-specifications.json" (builtins.toJSON cfg.specifications);

  # What a service and its options are, and how it ends.
  service = arguments: {
    Type = "notify";
    NotifyAccess = "main";
    ExecStart = lib.escapeShellArgs ([ "${cfg.package}/bin/gorget" ] ++ arguments);
    UMask = "0027";
    # Status 70 says that a part of it broke; a start takes up where it was. A usage error stays one.
    Restart = "on-failure";
    RestartSec = 2;
    RestartPreventExitStatus = 2;
    # It stops its children itself, in order; then whatever is left is killed.
    KillMode = "mixed";
    TimeoutStopSec = 30;
    LimitNOFILE = 65536;
  };

  hardened = {
    NoNewPrivileges = true;
    ProtectSystem = "strict";
    PrivateDevices = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" "AF_NETLINK" ];
    RestrictRealtime = true;
    LockPersonality = true;
    SystemCallFilter = "@system-service";
    SystemCallErrorNumber = "EPERM";
  };

  # To become another user, and to give that one its directories.
  becoming = [ "CAP_SETUID" "CAP_SETGID" "CAP_CHOWN" "CAP_FOWNER" "CAP_DAC_OVERRIDE" ];

  strings = description: lib.mkOption {
    type = lib.types.listOf lib.types.str;
    default = [ ];
    inherit description;
  };

  systemUser = group: description: { isSystemUser = true; inherit group description; };

  daemon = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.etc."gorget/specifications.json".source = specifications;

    users.groups.gorget = { };
    users.groups.gorget-jobs = { };
    users.users.gorget-jobs = systemUser "gorget-jobs" "Evaluations and builds of Gorget";

    systemd.services.gorget = {
      description = "Gorget, continuous integration";
      documentation = [ "man:gorget-register(1)" "man:gorget-specification(5)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" "nix-daemon.socket" ];
      path = [ config.nix.package pkgs.git pkgs.openssh ] ++ cfg.evaluatorPackages;
      # Evaluators are not root and ask the daemon, as builds do.
      environment.NIX_REMOTE = "daemon";
      # Changed jobsets are read without a stop.
      reloadTriggers = [ specifications ];

      serviceConfig = hardened // service ([
        "register"
        "--job-user=gorget-jobs"
        "--socket-group=gorget"
        "--specifications=/etc/gorget/specifications.json"
      ] ++ map (file: "--specifications=${file}") cfg.specificationFiles
      ++ lib.optional (cfg.web != null) "--web=${cfg.web}"
      ++ lib.optional cfg.remote.enable "--build-remote" ++ cfg.extraOptions) // {
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        Group = "gorget";
        TimeoutStartSec = 120;
        OOMPolicy = "continue";
        OOMScoreAdjust = -500;
        TasksMax = "infinity";

        # Jobs must be able to pass through these directories, though not to list them.
        StateDirectory = "gorget";
        StateDirectoryMode = "0751";
        CacheDirectory = "gorget";
        CacheDirectoryMode = "0751";
        RuntimeDirectory = "gorget";
        RuntimeDirectoryMode = "0750";
        RuntimeDirectoryPreserve = cfg.remote.enable;

        # To kill what the job user started, besides.
        CapabilityBoundingSet = becoming ++ [ "CAP_KILL" ];
        ProtectHome = "read-only";
        PrivateTmp = true;
        RestrictSUIDSGID = true;
        # What follows @system-service is for jobs: sandboxes in user namespaces and of their own, debuggers.
        SystemCallFilter = "@system-service @mount @debug landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp";
      };
    };
  };

  server = lib.mkIf (cfg.enable && cfg.remote.enable) {
    users.groups.gorget-remote = { };
    users.users.gorget-remote = systemUser "gorget-remote" "Gorget's server of remote workers";

    systemd.services.gorget-remote-server = {
      description = "Gorget, server of remote workers";
      documentation = [ "man:gorget-remote-server(1)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      serviceConfig = hardened // service ([
        "remote-server"
        "--user=gorget-remote"
        "--socket-group=gorget"
        "--no-publish"
      ] ++ cfg.remote.extraOptions) // {
        Group = "gorget";
        # Shared with the daemon, which links logs from the cache.
        CacheDirectory = "gorget";
        CacheDirectoryMode = "0751";
        RuntimeDirectory = "gorget";
        RuntimeDirectoryMode = "0750";
        RuntimeDirectoryPreserve = true;
        CapabilityBoundingSet = becoming;
        ProtectHome = true;
        PrivateTmp = true;
      };
    };
  };

  worker = lib.mkIf cfg.worker.enable {
    users.groups.gorget-worker = { };
    users.users.gorget-worker = systemUser "gorget-worker" "Gorget's worker";
    # It names places of substitutes, which nix-daemon lets only those do whom it trusts.
    nix.settings.trusted-users = [ "gorget-worker" ];

    systemd.services.gorget-remote-worker = {
      description = "Gorget, worker for a remote server";
      documentation = [ "man:gorget-remote-worker(1)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" "nix-daemon.socket" ];
      serviceConfig = hardened // service ([
        "remote-worker"
        "--user=gorget-worker"
        "--server=${cfg.worker.server}"
        "--workers=${toString cfg.worker.builds}"
        "--no-publish"
      ] ++ cfg.worker.extraOptions) // {
        # A stop lets it finish what it builds, for so long.
        TimeoutStopSec = "15min";
        StateDirectory = "gorget-worker";
        StateDirectoryMode = "0751";
        CapabilityBoundingSet = becoming;
        ProtectHome = "read-only";
        RestrictSUIDSGID = true;
      };
    };
  };
in
{
  options.services.gorget = {
    enable = lib.mkEnableOption "Gorget, continuous integration";

    package = lib.mkOption {
      type = lib.types.package;
      description = "The package with the program gorget.";
    };

    specifications = lib.mkOption {
      type = lib.types.listOf (lib.types.attrsOf lib.types.anything);
      default = [ ];
      description = "The jobsets, as gorget-specification(5) has them.";
    };

    specificationFiles = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      description = "Further specification files: those with secrets, for example, which must not get into the store.";
    };

    web = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "127.0.0.1:8080";
      description = "HOST:PORT where the daemon serves the web interface; put a proxy with HTTPS in front of it.";
    };

    evaluatorPackages = lib.mkOption {
      type = lib.types.listOf lib.types.package;
      default = [ pkgs.nix-eval-jobs ];
      defaultText = lib.literalExpression "[ pkgs.nix-eval-jobs ]";
      description = "What evaluators find besides Nix and Git. Without nix-eval-jobs, nix-instantiate evaluates.";
    };

    extraOptions = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "--max-builds=8" "--ttl=60d" ];
      description = "Further options of gorget-register(1).";
    };

    remote = {
      enable = lib.mkEnableOption "building on other machines, by a server of remote workers";
      extraOptions = strings "Further options of gorget-remote-server(1).";
    };

    worker = {
      enable = lib.mkEnableOption "a worker, which builds here for a server elsewhere";
      server = lib.mkOption {
        type = lib.types.str;
        example = "farm.example:5555";
        description = "ADDRESS:PORT of the server.";
      };
      builds = lib.mkOption {
        type = lib.types.ints.positive;
        default = 1;
        description = "Builds at once.";
      };
      extraOptions = strings "Further options of gorget-remote-worker(1).";
    };
  };

  config = lib.mkMerge [ daemon server worker ];
}
