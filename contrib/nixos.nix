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
{ config, lib, pkgs, ... }:
let
  cfg = config.services.gorget;
  specifications = pkgs.writeText "gorget-specifications.json" (builtins.toJSON cfg.specifications);
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
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.etc."gorget/specifications.json".source = specifications;

    users.groups.gorget = { };
    users.groups.gorget-jobs = { };
    users.users.gorget-jobs = {
      isSystemUser = true;
      group = "gorget-jobs";
      description = "Evaluations and builds of Gorget";
    };

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

      serviceConfig = {
        Type = "notify";
        NotifyAccess = "main";
        ExecStart = lib.escapeShellArgs ([
          "${cfg.package}/bin/gorget"
          "register"
          "--job-user=gorget-jobs"
          "--socket-group=gorget"
          "--specifications=/etc/gorget/specifications.json"
        ] ++ map (file: "--specifications=${file}") cfg.specificationFiles
        ++ lib.optional (cfg.web != null) "--web=${cfg.web}" ++ cfg.extraOptions);
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        Group = "gorget";
        UMask = "0027";

        # Status 70 says that a part of the daemon broke; a start takes up where it was. A usage error stays one.
        Restart = "on-failure";
        RestartSec = 2;
        RestartPreventExitStatus = 2;
        # The daemon stops its jobs itself, in order; then whatever is left is killed.
        KillMode = "mixed";
        TimeoutStartSec = 120;
        TimeoutStopSec = 30;
        OOMPolicy = "continue";
        OOMScoreAdjust = -500;
        LimitNOFILE = 65536;
        TasksMax = "infinity";

        # Jobs must be able to pass through these directories, though not to list them.
        StateDirectory = "gorget";
        StateDirectoryMode = "0751";
        CacheDirectory = "gorget";
        CacheDirectoryMode = "0751";
        RuntimeDirectory = "gorget";
        RuntimeDirectoryMode = "0750";

        # To become the job user, to own and remove what it made, and to kill it.
        CapabilityBoundingSet = [
          "CAP_SETUID"
          "CAP_SETGID"
          "CAP_CHOWN"
          "CAP_FOWNER"
          "CAP_DAC_OVERRIDE"
          "CAP_KILL"
        ];
        NoNewPrivileges = true;
        ProtectSystem = "strict";
        ProtectHome = "read-only";
        PrivateTmp = true;
        PrivateDevices = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        LockPersonality = true;
      };
    };
  };
}
