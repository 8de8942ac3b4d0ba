{{- define "authz.fullname" -}}
{{- $name := .Values.fullnameOverride }}
{{- if not $name }}
{{- $name = contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) }}
{{- end }}
{{- $name | trunc 57 | trimSuffix "-" }}
{{- end }}

{{- define "authz.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "authz.labels" -}}
{{ include "authz.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "authz.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "authz.fullname" .) "default") }}
{{- end }}

{{- define "authz.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "authz.configMap" -}}
{{- .Values.existingConfigMap | default (printf "%s-rules" (include "authz.fullname" .)) }}
{{- end }}

{{- /* The `server` part of the rules, in JSON; nothing is known of it where the ConfigMap is another's. */}}
{{- define "authz.server" -}}
{{- if .Values.existingConfigMap }}
{{- dict | toJson }}
{{- else }}
{{- $rules := fromYaml .Values.rules }}
{{- with $rules.Error }}
{{- fail (printf "`rules` is no YAML: %s" .) }}
{{- end }}
{{- if not $rules.rules }}
{{- fail "`rules` is the whole rules file as a text, and has no list `rules`: see docs/rules.md" }}
{{- end }}
{{- $rules.server | default dict | toJson }}
{{- end }}
{{- end }}

{{- /* What the schema of the values cannot tell: whether they fit what the rules say. */}}
{{- define "authz.check" -}}
{{- $server := include "authz.server" . | fromJson }}
{{- $drain := dig "drain_s" 20 $server | int }}
{{- $least := add .Values.preStopSleepSeconds $drain 5 }}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $least) }}
{{- fail (printf "`terminationGracePeriodSeconds` is %v, and a pod needs %v: `preStopSleepSeconds`, `server.drain_s` (%v) and 5" .Values.terminationGracePeriodSeconds $least $drain) }}
{{- end }}
{{- $listeners := $server.grpc | default (list (dict "address" "0.0.0.0:9001")) }}
{{- $listener := dict }}
{{- range $listeners }}
{{- if hasSuffix (printf ":%v" $.Values.ports.grpc) .address }}
{{- $listener = . }}
{{- end }}
{{- end }}
{{- if not $listener }}
{{- fail (printf "`ports.grpc` is %v, and no address under `server.grpc` of the rules has that port" .Values.ports.grpc) }}
{{- end }}
{{- if and $listener.tls (eq .Values.probes "grpc") }}
{{- fail "kubelet asks gRPC without TLS, and `server.grpc` of the rules has `tls`: set `probes: http`" }}
{{- end }}
{{- $http := hasKey $server "http" | ternary $server.http "0.0.0.0:9002" }}
{{- if $http }}
{{- if not (hasSuffix (printf ":%v" .Values.ports.http) $http) }}
{{- fail (printf "`ports.http` is %v, and `server.http` of the rules is `%s`" .Values.ports.http $http) }}
{{- end }}
{{- else if or (eq .Values.probes "http") .Values.serviceMonitor.enabled }}
{{- fail "`server.http` of the rules is null: neither `probes: http` nor `serviceMonitor` can ask there" }}
{{- end }}
{{- $pods := .Values.autoscaling.enabled | ternary .Values.autoscaling.minReplicas .Values.replicas }}
{{- $stay := .Values.podDisruptionBudget.minAvailable }}
{{- if and .Values.podDisruptionBudget.enabled (not (kindIs "string" $stay)) (ge (int $stay) (int $pods)) }}
{{- fail (printf "`podDisruptionBudget.minAvailable` is %v of %v pods: no node under them could be drained" $stay $pods) }}
{{- end }}
{{- end }}

{{- define "authz.namespaces" -}}
{{- range . }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
{{- end }}
{{- end }}

{{- define "authz.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "authz.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "authz.volumeMounts" -}}
# The folder, and no `subPath`: only then a change of the ConfigMap arrives.
- name: rules
  mountPath: /etc/authz
  readOnly: true
{{- if .Values.existingSecret }}
- name: secrets
  mountPath: /etc/authz-secrets
  readOnly: true
{{- end }}
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "authz.volumes" -}}
- name: rules
  configMap:
    name: {{ include "authz.configMap" . }}
{{- with .Values.existingSecret }}
- name: secrets
  secret:
    secretName: {{ . }}
    # Rules that name no secret need none; a file that they name and that is not there is refused by name.
    optional: true
    defaultMode: 288 # 0440
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
